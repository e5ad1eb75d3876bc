"""From the ledger and the events to what a person keeps: the receipt and the page."""
