"""Machines of one's own: the contract over real sshd servers with homes of their own, and that a lease leaves nothing behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from contract import Cloud, ProviderContract, login, ssh_options, wait_for_ssh
from sandbox_help import poll, processes_of

from providers.base import Instance, InstanceStatus, LaunchSpec, Requirements
from providers.errors import NoCapacity, NoKey, ProviderError, Unavailable, UnexpectedResponse
from providers.sandbox import machine
from providers.sandbox.machines import Boot, RealMachines, login_user, needs_private_run
from providers.ssh import END, LOOK, SSH, TAKE, Said, address, over_ssh

NEEDS = Requirements(disk_gib=1)


@dataclass
class Garage:
    """Two machines of one owner, on whom no cloud has a hand: plain sshd servers, whose HOME is a folder of the test."""

    folder: Path
    owner_key: Path
    hosts: list[str] = field(default_factory=list)
    homes: list[Path] = field(default_factory=list)

    @property
    def options(self) -> list[str]:
        """ssh's words for the owner: one connection for many commands, which here is four times as fast."""
        shared = ("ControlMaster=auto", f"ControlPath={self.folder}/%p", "ControlPersist=2")
        return [*ssh_options(self.owner_key), *(word for option in shared for word in ("-o", option))]

    def __enter__(self) -> Self:
        self.machines = RealMachines(self.folder / "machines", login_user(), private_run=needs_private_run(self.folder))
        key = self.owner_key.with_suffix(".pub").read_text().strip()
        for name in ("one", "two"):
            self.machines.start(name, Boot(mark=f"{self.folder}-{name}", ssh_public_key=key, env={}, onstart=""))
        for name in ("one", "two"):
            poll(partial(self._port, name), what="a machine")
            home, config = self.folder / "machines" / name / "root", self.folder / "machines" / name / "etc" / "sshd_config"
            own = " ".join(f'"{word}={value}"' for word, value in machine.base_environment(home.parent).items() if word in ("HOME", "PATH"))
            lines = [line for line in config.read_text().splitlines() if not line.startswith(("ForceCommand", "SetEnv"))]
            config.write_text("\n".join([*lines, f"SetEnv SHLVL=1 {own}", ""]))  # the first SetEnv counts; each login reads it anew
            self.hosts.append(f"{login_user()}@127.0.0.1:{self.machines.look(name).port}")
            self.homes.append(home)
        return self

    def _port(self, name: str) -> int | None:
        return self.machines.look(name).port

    def __exit__(self, *_: object) -> None:
        for name in ("one", "two"):
            self.machines.end(name, f"{self.folder}-{name}")
            self.machines.wipe(name)


def new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def garage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Garage]:
    folder = tmp_path_factory.mktemp("garage")
    with Garage(folder, new_key(folder / "owner")) as garage:
        yield garage


@dataclass
class SSHCloud:
    garage: Garage
    ssh_key: Path
    other_key: Path
    unknown_id: str = "nobody-000000000000"
    page_size: int = 1
    """Each machine is asked on its own."""
    instead: dict[str, list[Said | None]] = field(default_factory=dict)
    """Script -> what its next calls answer without being run; None: as they do."""
    after: bool = False
    """The next script is run and its answer lost."""
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.provider = SSH(self.garage.hosts, gpu="RTX 4090, 24", options=self.garage.options, run=self.run)
        self.stranger = SSH(self.garage.hosts, gpu="RTX 4090, 24", options=ssh_options(self.other_key))

    def run(self, host: str, script: str, arguments: Sequence[str]) -> Said:
        self.calls.append(script)
        if (answers := self.instead.get(script)) and (said := answers.pop(0)):
            return said
        said = over_ssh(self.garage.options)(host, script, arguments)
        if self.after and script == TAKE:
            return Said(255, "", "client_loop: send disconnect: Broken pipe")
        return said

    def creates(self) -> int:
        return self.calls.count(TAKE)

    def lose_the_answer_to_create(self) -> None:
        self.heal()
        self.after = True

    def answer_create(self, status: int, *, instance_id: str = "") -> None:
        self.heal()
        self.instead[TAKE] = [Said(255, "", "Connection reset by peer") if status >= 500 else Said(status % 255, instance_id, "sh: odd")]

    def break_page_two_of_instances(self) -> None:
        self.instead[LOOK] = [None, Said(255, "", "ssh: connect to host 127.0.0.1 port 1: Connection refused")]

    def answer_instances_with(self, body: str) -> None:
        self.instead[LOOK] = [Said(0, body, "")]

    def answer_describe_with_status(self, instance: Instance, status: str) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        self.instead.clear()
        self.calls.clear()
        self.after = False


@pytest.fixture(scope="module")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("other") / "key")


class TestSSH(ProviderContract):
    test_a_status_that_we_do_not_know_is_unknown: ClassVar[None] = None  # type: ignore[assignment]  # a lease is there or not
    test_too_many_requests_is_rate_limited_and_says_how_long: ClassVar[None] = None  # type: ignore[assignment]  # nobody counts
    test_the_bill_of_an_instance_grows_while_it_lives_and_stays_when_it_is_gone: ClassVar[None] = None  # type: ignore[assignment]  # free

    @pytest.fixture
    def cloud(self, garage: Garage, ssh_key: Path, other_key: Path) -> Cloud:
        return SSHCloud(garage, ssh_key, other_key)

    @pytest.mark.parametrize("status", [500, 400])
    def test_an_instance_id_in_the_answer_of_a_failed_create_is_kept(self, cloud: Cloud, status: int) -> None:
        """The id is ours, so it is known whatever the answer is."""
        cloud.answer_create(status)
        with pytest.raises(ProviderError) as caught:
            self.launch(cloud)
        (instance_id,) = caught.value.instance_ids
        assert cloud.provider.describe(instance_id).status is InstanceStatus.GONE


@pytest.fixture
def cloud(garage: Garage, ssh_key: Path, other_key: Path) -> Iterator[SSHCloud]:
    cloud = SSHCloud(garage, ssh_key, other_key)
    yield cloud
    cloud.heal()
    for instance in cloud.provider.instances():
        cloud.provider.terminate(instance.id)


def launch(cloud: SSHCloud, **fields: Any) -> Instance:
    key = cloud.ssh_key.with_suffix(".pub").read_text().strip()
    spec = LaunchSpec(**{"label": "lorry-mine", "image": "", "disk_gib": 1, "ssh_public_key": key} | fields)
    return wait_for_ssh(cloud.provider, cloud.provider.launch(cloud.provider.offers(NEEDS)[0], spec).id)


def test_a_lease_ends_with_its_processes_its_folder_and_its_key_and_nothing_of_the_owners(cloud: SSHCloud) -> None:
    home = cloud.garage.homes[0]
    keys = home / ".ssh" / "authorized_keys"
    (home / "lorry").mkdir()
    (home / "lorry" / "mine").write_text("the owner's")
    keys.write_text(keys.read_text().rstrip("\n"))  # an editor that ends no line
    before, names = keys.read_text(), sorted(path.name for path in home.iterdir())
    instance = launch(cloud, onstart="echo $LORRY_LEASE >id; (setsid sleep 600 &); sleep 600")
    login(cloud, instance, "mkdir -p lorry/run && cd lorry/run && (setsid sleep 601 >/dev/null 2>&1 &); mkdir no; touch no/x; chmod 0 no")  # type: ignore[arg-type]
    folder = home / ".lorry-leases" / instance.id.rpartition("-")[2]
    poll((folder / "home" / "id").exists, what="onstart")
    assert sorted(path.name for path in (folder / "home").iterdir()) == ["id", "lorry"]
    assert len([one for one in processes_of(folder) if one]) >= 3
    cloud.provider.terminate(instance.id)
    assert keys.read_text() == before + "\n"
    assert sorted(path.name for path in home.iterdir()) == names
    assert (home / "lorry" / "mine").read_text() == "the owner's"
    assert processes_of(folder) == []
    with pytest.raises(subprocess.CalledProcessError, match="255"):
        login(cloud, instance, "true")  # type: ignore[arg-type]


def test_files_come_by_sftp_and_rsync_into_the_lease_only(cloud: SSHCloud, tmp_path: Path) -> None:
    instance = launch(cloud)
    assert instance.ssh
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    options = ssh_options(cloud.ssh_key)
    where = f"{instance.ssh.user}@127.0.0.1"
    subprocess.run(["scp", "-q", *options, "-P", str(instance.ssh.port), tmp_path / "file", f"{where}:by-sftp"], check=True, timeout=30)
    shell = " ".join(["ssh", *options, "-p", str(instance.ssh.port)])
    subprocess.run(["rsync", "-a", "-e", shell, tmp_path / "file", f"{where}:by-rsync"], check=True, timeout=30)
    folder = cloud.garage.homes[0] / ".lorry-leases" / instance.id.rpartition("-")[2] / "home"
    assert [(folder / name).stat().st_size for name in ("by-sftp", "by-rsync")] == [100_000] * 2
    assert login(cloud, instance, "pwd; echo $HOME") == f"{folder}\n" * 2  # type: ignore[arg-type]


def test_of_two_who_want_one_machine_one_gets_it(cloud: SSHCloud) -> None:
    offer = cloud.provider.offers(NEEDS)[0]
    spec = LaunchSpec(label="lorry-first", image="", disk_gib=1, ssh_public_key="ssh-ed25519 AAAA")
    cloud.provider.launch(offer, spec)
    with pytest.raises(NoCapacity, match="is taken by lorry-first"):
        cloud.provider.launch(offer, spec)
    assert [one.label for one in cloud.provider.instances()] == ["lorry-first"]
    assert len((cloud.garage.homes[0] / ".ssh" / "authorized_keys").read_text().split("lorry-lease-")) == 2


def test_what_does_not_end_is_said_to_live(cloud: SSHCloud) -> None:
    instance = launch(cloud)
    cloud.instead[END] = [Said(0, "@lorry left 4711\n@lorry end\n", "")]
    with pytest.raises(Unavailable, match="4711"):
        cloud.provider.terminate(instance.id)
    assert cloud.provider.describe(instance.id).status is InstanceStatus.RUNNING


def test_one_machine_that_cannot_be_asked_makes_the_whole_answer_unknown(cloud: SSHCloud) -> None:
    provider = SSH([*cloud.garage.hosts, "127.0.0.1:1"], gpu="RTX 4090, 24", options=ssh_options(cloud.garage.owner_key))
    for call in (provider.instances, lambda: provider.offers(NEEDS), provider.account):
        with pytest.raises(Unavailable, match="cannot be reached"):
            call()


def test_cards_are_told_by_the_machine_in_the_fields_names() -> None:
    def told(lines: str) -> SSH:
        return SSH(["h"], run=lambda *_: Said(0, f"Welcome!\n@lorry free 100\n@lorry user me\n{lines}@lorry end\n", ""))

    (offer,) = told("@lorry gpu NVIDIA GeForce RTX 4090, 24564\n@lorry gpu NVIDIA GeForce RTX 4090, 24564\n").offers(NEEDS)
    assert (offer.gpu_name, round(offer.vram_gib), offer.gpu_count, offer.disk_gib) == ("RTX 4090", 24, 2, 100)
    assert offer.prices.usd_per_hour(100) == 0
    assert told("@lorry gpu NVIDIA A100-SXM4-80GB, 81920\n").offers(NEEDS)[0].gpu_name == "A100 SXM4"
    assert told("").offers(NEEDS) == [], "no card, no offer"
    with pytest.raises(UnexpectedResponse):
        told("@lorry gpu [Unknown Error]\n").offers(NEEDS)
    for cut in ("", "@lorry free 100\n", "@lorry free 100\n@lorry user me\n"):
        with pytest.raises(UnexpectedResponse, match="did not do as asked"):
            SSH(["h"], run=lambda *_, cut=cut: Said(0, cut, "")).instances()
    for lines in ("@lorry id a\n", "@lorry id a\n@lorry label b\n@lorry created x\n@lorry disk 1\n"):
        with pytest.raises(UnexpectedResponse, match="cannot be read"):
            told(lines).instances()


def test_where_a_machine_is() -> None:
    assert address("me@box:2222") == ["-p", "2222", "--", "me@box"]
    assert address("box") == ["--", "box"]
    assert address("-oProxyCommand=x") == ["--", "-oProxyCommand=x"]


def test_the_machines_stand_in_a_file_of_lorrys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_HOME", str(tmp_path))
    with pytest.raises(NoKey, match="no machine of yours") as caught:
        SSH.from_env().instances()
    assert str(tmp_path / "ssh.toml") in caught.value.hint
    (tmp_path / "ssh.toml").write_text('hosts = ["a", "b:22"]\nkey = "~/k"\ngpu = "RTX 4090, 24"')
    provider = SSH.from_env()
    assert repr(provider) == "SSH(['a', 'b:22'])"
    assert (provider._gpu, provider._options[1]) == ("RTX 4090, 24", str(Path("~/k").expanduser()))
    for text in ("hosts = 3", "hosts = [", 'hosts = [""]', "hosts = [1]", 'hosts = ["a"]\nkey = 1'):
        (tmp_path / "ssh.toml").write_text(text)
        with pytest.raises(ProviderError):
            SSH.from_env()
