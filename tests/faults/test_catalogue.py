"""The faults that renting is prepared for, one by one, and the tests that show what becomes of each.

A name here that is no test is an error, and so is a fault without a test.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.sources import parsed

TESTS = Path(__file__).parents[1]
RENTING = "faults/test_renting.py"
LEASE, RENT, SHELL = "orchestrator/test_lease.py", "orchestrator/test_rent.py", "orchestrator/test_shell.py"
VAST, RUNPOD, DOCK = "providers/test_vast.py", "providers/test_runpod.py", "providers/test_tensordock.py"
INSPECTED, INSPECTOR, WRONG = "orchestrator/test_inspection.py", "orchestrator/test_inspector.py", "e2e/test_wrong_machines.py"
CRASH = ("e2e/test_crash.py", "test_a_run_whose_client_was_killed_ends_as_if_nothing_had_happened")

FAULTS: dict[str, tuple[tuple[str, str], ...]] = {
    # 2.1 search and price
    "1 an offer vanishes between search and rent": (
        (RENTING, "test_an_offer_that_vanished_is_told_and_the_next_is_rented"),
        (RENTING, "test_when_every_offer_has_vanished_the_reasons_are_listed_and_nothing_is_rented"),
    ),
    "2 the price changes between search and rent": (
        (RENTING, "test_a_machine_that_costs_more_than_its_offer_is_given_back_and_the_next_is_taken"),
        (RENT, "test_what_a_dearer_machine_costs_while_it_is_given_back_is_on_the_meter"),
    ),
    "3 the rate that is searched by leaves out disk and traffic": (
        ("orchestrator/test_plan.py", "test_every_meter_counts"),
        (VAST, "test_every_price_part_is_in_our_units"),
        (DOCK, "test_an_offers_price_is_the_whole_rate_and_agrees_with_the_machine_and_with_the_meter"),
    ),
    "4 the price of a running machine rises": (
        (LEASE, "test_a_rise_is_metered_from_when_the_old_price_was_last_seen_and_a_fall_from_now"),
        ("orchestrator/test_terms.py", "test_a_rise_is_said_metered_and_brings_the_deadline_nearer_on_the_machine_too"),
        ("providers/test_vast_face.py", "test_prices_rise_only_for_those_who_accept"),
    ),
    "5 no offers, or absurd ones": (
        ("orchestrator/test_plan.py", "test_no_offer_at_all_is_said_so"),
        ("orchestrator/test_plan.py", "test_an_offer_whose_numbers_cannot_be_true_is_never_ranked"),
        (VAST, "test_whatever_a_row_says_it_is_read_or_left_out_and_never_absurd"),
        (RUNPOD, "test_an_absurd_offer_is_never_ranked"),
        (DOCK, "test_whatever_a_host_says_it_is_read_or_left_out_and_never_absurd"),
    ),
    "6 other units, text for numbers, new fields, new words": (
        (VAST, "test_an_instance_however_odd_is_read_or_unknown_and_never_a_crash"),
        (RUNPOD, "test_an_odd_field_never_hides_a_pod_or_breaks_the_reader"),
        (DOCK, "test_each_word_for_a_machines_state"),
    ),
    "7 no credit, or a limit of spending": (
        (RENTING, "test_an_account_without_money_is_told_once_with_the_way_out_and_no_storm_of_tries"),
        (VAST, "test_without_credit_nothing_is_rented_and_the_account_shows_it"),
        (RUNPOD, "test_no_credit_is_refused_and_says_where_to_add_some"),
    ),
    "8 a host that is unverified, slow, or has failed before": (
        ("orchestrator/test_plan.py", "test_every_wish_is_checked_here_whatever_the_cloud_sent"),
        ("orchestrator/test_memory.py", "test_a_machine_is_avoided_until_its_time_is_over_and_no_longer"),
    ),
    # 2.2 create
    "9 a crash before the intent is on the disk": (CRASH, (LEASE, "test_killed_before_and_after_every_effect_the_next_command_ends_it")),
    "10 a crash after the intent, before the create": (CRASH, (LEASE, "test_a_lease_that_was_never_created_is_closed_without_renting")),
    "11 a crash after the create, before its answer": (
        CRASH,
        (LEASE, "test_killed_before_and_after_every_effect_the_next_command_ends_it"),
    ),
    "12 the answer is lost": (
        (RENTING, "test_a_create_in_doubt_is_sent_once_found_by_its_label_and_ended"),
        (RENTING, "test_a_create_that_never_arrived_is_looked_for_and_costs_nothing"),
    ),
    "13 an error of the server's, and it was created": (
        (RENTING, "test_a_create_in_doubt_is_sent_once_found_by_its_label_and_ended"),
        (RENTING, "test_after_a_create_in_doubt_the_next_offer_does_the_job"),
        ("e2e/test_over_runpod.py", "test_a_run_over_runpod_ends_although_its_first_create_answered_500_and_took_effect"),
    ),
    "14 an error that carries an id": (
        (RENTING, "test_a_bid_below_the_market_is_an_error_with_an_id_and_that_machine_is_ended"),
        (LEASE, "test_a_refusal_that_names_an_id_rented_that_machine"),
    ),
    "15 a success without an id": ((RENTING, "test_a_create_in_doubt_is_sent_once_found_by_its_label_and_ended"),),
    "16 a create that lands late": (
        (RENTING, "test_a_create_in_doubt_is_sent_once_found_by_its_label_and_ended"),
        (LEASE, "test_a_create_whose_answer_was_lost_is_found_by_its_label_however_late_it_lands"),
    ),
    "17 too many requests": (
        (RENTING, "test_too_many_requests_rented_nothing"),
        (VAST, "test_every_shape_of_too_often_says_how_long_to_wait"),
        (VAST, "test_calls_are_kept_apart_so_that_documented_limits_are_never_met"),
    ),
    "18 two who rent the same offer": (
        ("providers/test_sandbox_server.py", "test_two_clients_that_want_one_offer_get_one_machine"),
        ("orchestrator/test_home.py", "test_two_drivers_do_not_drive_one_run"),
    ),
    "19 the book cannot be written": (
        (LEASE, "test_a_fault_at_any_call_never_leaves_a_machine_unseen"),
        (LEASE, "test_a_full_disk_here_keeps_no_machine_alive_there"),
    ),
    "20 the label is cut, dropped or changed": (
        (RENT, "test_a_machine_whose_label_the_cloud_has_not_kept_is_given_back"),
        (RENT, "test_a_label_that_was_cut_behind_the_run_is_told_and_taken"),
        (RUNPOD, "test_a_pod_of_another_name_than_asked_is_no_success_and_its_id_is_kept"),
    ),
    "21 the listing lags": (
        (RENTING, "test_a_listing_that_lags_or_fails_is_no_absence"),
        (LEASE, "test_a_dead_machine_that_is_still_listed_is_not_called_gone"),
    ),
    "22 the listing has pages, and one fails": (
        ("providers/contract.py", "test_a_listing_with_a_broken_page_is_an_error_and_no_part_of_an_answer"),
        (VAST, "test_a_listing_that_does_not_add_up_is_no_listing"),
    ),
    # 2.3 boot
    "23 it boots for ever": (
        (RENTING, "test_machines_that_boot_for_ever_are_given_back_one_after_the_other_within_a_bound"),
        (RENT, "test_a_machine_that_never_boots_is_given_back_at_the_deadline"),
    ),
    "24 it is dead on arrival": (
        (RENTING, "test_a_machine_that_is_dead_on_arrival_is_not_polled_till_the_deadline"),
        (VAST, "test_what_each_status_means"),
    ),
    "25 a crash while it boots": (CRASH,),
    "26 it runs without an address, or moves": (
        (RENTING, "test_an_address_that_comes_late_is_waited_for"),
        (VAST, "test_an_address_that_comes_late_is_waited_for_and_then_the_proxy_is_taken"),
        (RUNPOD, "test_a_stopped_pod_has_no_address_whatever_its_stale_runtime_says_and_moves_when_it_starts"),
        (SHELL, "test_a_new_machine_at_an_old_address_is_met_after_its_pin_was_dropped"),
    ),
    "27 another card, or less of it": (
        (WRONG, "test_a_machine_with_another_card_gets_no_byte_of_the_dataset_and_the_next_one_trains"),
        (INSPECTED, "test_another_one_is_told_apart_in_words"),
    ),
    "28 a driver that is too old": ((INSPECTOR, "test_the_call_that_failed_is_told_in_the_drivers_words"),),
    "29 less disk, or one that cannot be written": (
        (INSPECTED, "test_another_one_is_told_apart_in_words"),
        (INSPECTOR, "test_a_full_disk_is_told"),
    ),
    "30 a host that is slow": (
        (WRONG, "test_a_machine_whose_line_creeps_is_given_back_and_what_was_tried_on_it_is_on_our_meter"),
        (INSPECTED, "test_a_line_is_slow_from_three_times_the_plans_time_on"),
    ),
    "31 a host whose clock is wrong": (("guard/test_guard.py", "test_a_clock_that_is_set_moves_no_deadline"),),
    # 2.4 SSH
    "32 the line dies": (
        (SHELL, "test_a_line_that_goes_dead_is_noticed_and_mended"),
        (SHELL, "test_the_limit_for_silence_keeps_the_promise_of_thirty_seconds"),
    ),
    "33 a server that accepts and says nothing": ((SHELL, "test_a_server_that_accepts_and_says_nothing_is_not_waited_for"),),
    "34 a server that lives and does nothing": (
        (SHELL, "test_a_command_that_never_ends_times_out_and_is_not_run_again"),
        (SHELL, "test_a_line_on_which_nothing_gets_through_is_given_up"),
    ),
    "35 another host key": (
        (SHELL, "test_another_host_key_ends_it_before_a_byte_of_ours_is_sent"),
        ("orchestrator/test_ship.py", "test_another_machine_behind_the_address_gets_nothing"),
    ),
    "36 the key comes later than the address": (
        (DOCK, "test_a_login_has_the_environment_and_comes_only_when_all_of_it_is_there"),
        (SHELL, "test_openssh_uses_this_runs_key_and_pins_and_nothing_of_the_users"),
    ),
    "37 a greeting before the answer": (
        (INSPECTED, "test_an_answer_is_found_behind_a_greeting"),
        (VAST, "test_the_start_script_quotes_the_key_and_keeps_the_callers_lines"),
    ),
    "38 another shell, no Python": (
        (INSPECTOR, "test_a_machine_without_python_is_told_apart"),
        (SHELL, "test_arguments_arrive_as_they_are_whatever_they_contain"),
    ),
    "39 output without end": (
        (SHELL, "test_an_answer_without_end_is_cut_off"),
        (SHELL, "test_endless_errors_do_not_block_the_answer"),
        ("orchestrator/test_view.py", "test_nothing_of_the_machines_text_acts_on_a_terminal"),
    ),
}  # fmt: skip
"""Number and fault -> file and test. The numbers are those of the catalogue that the promises were made from."""


@cache
def names_in(file: str) -> frozenset[str]:
    """Every function of a test file that is a test."""
    tree = parsed(TESTS / file)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_tests_and_they_are_there(fault: str) -> None:
    assert FAULTS[fault]
    for file, name in FAULTS[fault]:
        assert name in names_in(file), f"{file} has no {name}"


def test_no_fault_is_left_out() -> None:
    assert [int(fault.split()[0]) for fault in FAULTS] == list(range(1, 40))


def test_every_test_of_renting_belongs_to_a_fault() -> None:
    named = {name for tests in FAULTS.values() for file, name in tests if file == RENTING}
    assert names_in(RENTING) - named == {"test_without_a_fault_one_machine_is_rented_and_given_back"}
