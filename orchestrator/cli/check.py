"""`lorry check`."""

from __future__ import annotations

from .common import ConfigFiles, Json


def check(file: ConfigFiles = None, json: Json = False) -> int:
    """Find everything wrong in config and datasets; no network, no torch.

    Reads the config, every picture and caption that it names, and the headers of the bases. Changes nothing and rents nothing. Ends
    with 0 when a run could start, 2 when the config must be put right and 3 when a dataset must.

    Examples:
      lorry check
      lorry check autumn.lorry.toml
      lorry check lisa.toml forest.toml      also whether they can be one session
      lorry check --json | jq -r '.[].message'
    """
    from orchestrator import console
    from orchestrator.errors import ConfigError
    from orchestrator.file.check import both, counts, refusal, summary
    from orchestrator.file.check import check as look
    from orchestrator.file.joining import joined
    from orchestrator.prepare import configs_of

    try:
        configs = configs_of(file)
        joined(configs)
        checked = both([look(config) for config in configs])
    except ConfigError as error:
        if not json:
            raise
        console.json_document([finding.as_json() for finding in error.findings])
        return error.exit_code
    refused = refusal(checked)
    if json:
        console.json_document([finding.as_json() for finding in checked.findings])
        return refused.exit_code if refused else 0
    if refused:
        raise refused
    console.findings(checked.findings)
    for job in checked.jobs:
        for line in summary(job):
            console.out(line)
    found = counts(checked.findings)
    console.talk(f"{', '.join(str(config.file) for config in configs)}: nothing stands in the way{f' ({found})' if found else ''}")
    return 0
