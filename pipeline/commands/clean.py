"""`twotower clean`: old runs' artifacts and old pushed versions go, and nothing that is needed."""

from __future__ import annotations

import dataclasses
import os

import click
from rich.table import Table

from modules.errors import UserError
from pipeline import completion, terminal
from pipeline.commands.options import Common, Count, configured

_SERVERS = "serving/models.config"


@click.command(
    epilog="""
    twotower clean --keep 5
    twotower clean --keep 5 --keep-versions 3 --yes
    """
)
@click.option("--keep", type=Count(), metavar="N", help="artifacts of the newest N finished runs stay")
@click.option("--keep-versions", type=Count(), metavar="M", help="the newest M pushed versions stay")
@click.option("--checkpoints", is_flag=True, help="also remove those that a killed training would go on from")
@click.option("--model-config-file", metavar="F", shell_complete=completion.files,
              help=f"TF Serving's: versions it names stay (default: {_SERVERS}, if there)")  # fmt: skip
@click.option("--dry-run/--yes", default=True, show_default=True, help="only say what would go, or do it")
@configured
def clean(
    common: Common,
    keep: int | None,
    keep_versions: int | None,
    checkpoints: bool,
    model_config_file: str | None,
    dry_run: bool,
) -> int:
    """Remove artifacts of old runs, and old pushed versions; what is served, or what a run that stays needs, stays."""
    if keep is None and keep_versions is None and not checkpoints:
        raise UserError("nothing to clean: give --keep N, --keep-versions M or --checkpoints")
    config = common.load()
    from pipeline import cleaning

    labelled, loaded = _of_servers(config.name, model_config_file)
    wish = cleaning.Wish(keep, keep_versions, checkpoints, labelled, loaded)
    done = cleaning.plan(config, wish) if dry_run else cleaning.clean(config, wish)
    if common.json:
        common.answer(
            {
                "dry_run": dry_run,
                "bytes": done.bytes,
                "gone": [dataclasses.asdict(each) for each in done.gone],
                "stays": [dataclasses.asdict(each) for each in done.stays],
                "versions": done.versions,
            }
        )
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("would go" if dry_run else "gone")
    table.add_column("MB", justify="right")
    sizes: dict[str, int] = {}
    for each in done.gone:
        sizes[each.what] = sizes.get(each.what, 0) + each.bytes
    for what, size in sizes.items():
        table.add_row(what, f"{size / 1e6:,.1f}")
    stays = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("stays", "why"):
        stays.add_column(name)
    for kept in done.stays:
        stays.add_row(kept.what, kept.why)
    console = terminal.console()
    if sizes:
        console.print(table)
        console.print()
    if done.stays:
        console.print(stays)
        console.print()
    console.print(
        f"{done.bytes / 1e6:,.1f} MB {'would become' if dry_run else 'became'} free"
        + ("; --yes does it" if dry_run and done.gone else "")
    )
    return 0


def _of_servers(name: str, path: str | None) -> tuple[set[int], int]:
    """The versions of a model that a model config file names, and how many of the newest it loads."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    if path is None and not os.path.exists(_SERVERS):
        return set(), 0
    where = path or _SERVERS
    try:
        with open(where, encoding="utf-8") as file:
            found = text_format.Parse(file.read(), model_server_config_pb2.ModelServerConfig())
    except (OSError, UnicodeError, text_format.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UserError(f"--model-config-file {where}: {reason}; correct it, or name another one") from None
    ours = [each for each in found.model_config_list.config if each.name == name]
    named = {
        version
        for each in ours
        for version in (*each.model_version_policy.specific.versions, *each.version_labels.values())
    }
    return named, max((each.model_version_policy.latest.num_versions for each in ours), default=0)
