"""The whole proposal: roles, features, split and serving, each with its reason, as a tree that `config` accepts."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from modules.data import profiles, survey, tables
from modules.data.profiles import Profile
from modules.data.survey import Survey
from modules.errors import UserError
from modules.settings import TemporalSplit
from pipeline.config import Config, mistakes
from pipeline.data_check import USUAL_REPEATS
from pipeline.proposal import encodings, roles
from pipeline.proposal.encodings import Choice
from pipeline.proposal.roles import Given, Roles

# A user who is seen less often is described well enough by the history.
_OF_ONE_USER, _USERS = 20, 1_000_000
# With fewer users to judge by, an interval around NDCG is as wide as what models differ by.
_JUDGED = 500
_LENGTHS = (20, 50, 100, 200, 500)
_K = (10, 50, 100)
# Values of a column that answers are filtered by, and those of a slice.
_FILTERED, _SLICED = 1_000, 30


@dataclass
class Proposal:
    """A configuration and why it is so."""

    tree: dict[str, Any]
    """As the YAML has it."""
    roles: Roles
    choices: dict[str, list[Choice]] = field(default_factory=lambda: {"query": [], "candidate": []})
    """By tower, the features in their order."""
    left_out: dict[str, list[Choice]] = field(default_factory=dict)
    """By table."""
    reasons: dict[str, str] = field(default_factory=dict)
    """By section or key: of the split, and of what is served."""
    unsure: list[str] = field(default_factory=list)


def propose(
    name: str, interactions: str, items: str, users: str | None, given: Given, say: Callable[[str], None]
) -> Proposal:
    """Looks at the tables and decides.

    Args:
        name: Of the configuration and of the model.
        interactions: Path of the table, a file or a glob.
        items: The same.
        users: The same; None where there is none.
        given: Columns that the person has named.
        say: Is told what takes long.

    Raises:
        UserError: A table cannot be read, or a column's role cannot be decided.
    """
    paths = {"interactions": interactions, "items": items} | ({"users": users} if users else {})
    looked, refused = {}, {}
    for table, path in paths.items():
        say(f"looking at {path}")
        looked[table], refused[table] = profiles.profiles(table, path, f"--{table}")
    found = roles.find(looked["interactions"], looked["items"], looked.get("users"), given)
    about: dict[str, Any] = {
        "interactions": {"path": interactions, "user": found.user, "item": found.item, "timestamp": found.timestamp},
        "items": {"path": items, "id": found.item_id},
    }
    if found.weight is not None:
        about["interactions"]["weight"] = found.weight
    if users:
        about["users"] = {"path": users, "id": found.user_id}
    history = {"encoding": "history"}
    tree = {"name": name, "tables": about, "features": {"query": [history], "candidate": []}}
    result = Proposal(tree, found, unsure=list(found.unsure))
    catalogue = looked["items"][found.item_id]
    _limit_answers(result, catalogue)

    item = Choice(
        found.item, f"the item's id, {catalogue.different:,} items", {"column": found.item, "encoding": "vocabulary"}
    )
    wrong = _add(result, "candidate", item)
    if wrong is not None:
        raise UserError(wrong)
    result.tree["features"]["query"] = [history]
    config = Config.model_validate(result.tree)
    plan = tables.plan(config.tables, TemporalSplit(), _wanted(config))
    say(f"counting what each user has in {interactions}")
    seen = survey.survey(config.tables, TemporalSplit(), plan)

    result.tree["features"]["query"] = []
    for choice in _of_query(looked, found, seen):
        _take(result, "query", choice[0], choice[1])
    _show_title(result, found)
    for column, profile in looked["items"].items():
        if column != found.item_id:
            _take(result, "candidate", "items", encodings.choose(profile, column == found.title))
    for table, columns in refused.items():
        for column, why in columns.items():
            result.left_out.setdefault(table, []).append(Choice(column, why, None))
    _split(result, seen)
    _serve(result, looked, seen)
    wrong = _refusal(result.tree)
    if wrong is not None:
        raise UserError(wrong)
    return result


def _wanted(config: Config) -> tables.Wanted:
    return tables.wanted(config.tables, config.features, config.evaluation, config.serving)


def _refusal(tree: dict[str, Any]) -> str | None:
    """What the configuration's own checks, and the tables' headers, say against a tree; None for nothing."""
    try:
        config = Config.model_validate(tree)
        tables.plan(config.tables, config.split, _wanted(config))
    except ValidationError as error:
        return "; ".join(mistakes(error))
    except UserError as error:
        return str(error)
    return None


def _add(result: Proposal, tower: str, choice: Choice) -> str | None:
    """Adds a feature, unless its name or its type does not allow it: then says why."""
    changed = copy.deepcopy(result.tree)
    changed["features"][tower].append(choice.fields)
    wrong = _refusal(changed)
    if wrong is None:
        result.tree = changed
        result.choices[tower].append(choice)
        if choice.unsure:
            result.unsure.append(choice.unsure)
    return wrong


def _take(result: Proposal, tower: str, table: str, choice: Choice) -> None:
    """A feature, or a column that is left out."""
    wrong = _add(result, tower, choice) if choice.fields is not None else choice.reason
    if wrong is not None:
        result.left_out.setdefault(table, []).append(Choice(choice.column, wrong, None))


def _limit_answers(result: Proposal, catalogue: Profile) -> None:
    """Answers are never longer than the catalogue."""
    size = min(catalogue.different, catalogue.rows)
    if size < max(_K):
        result.tree["serving"] = {"k": size}
        result.tree["evaluation"] = {"k": [k for k in _K if k <= size] or [size]}
        result.reasons["serving.k"] = f"the catalogue has {size} items"


def _of_query(looked: dict[str, dict[str, Profile]], found: Roles, seen: Survey) -> Iterator[tuple[str, Choice]]:
    """(Table, choice) of the query tower, in the order of the YAML."""
    lengths = seen.sampled.lengths
    mean = float(lengths.mean()) if len(lengths) else 0.0
    longest = int(np.percentile(lengths, 99)) if len(lengths) else 1
    limit = next((length for length in _LENGTHS if length >= longest), _LENGTHS[-1])
    reason = f"99 in 100 users have at most {longest:,} interactions"
    yield "interactions", Choice("history", reason, {"encoding": "history", "max_length": limit})
    if found.has_times:
        fields: dict[str, Any] = {"encoding": "history_age"}
        yield "interactions", Choice("history_age", "seconds since the newest of them", fields)
        fields = {"column": found.timestamp, "encoding": "timestamp"}
        yield "interactions", Choice(found.timestamp, "the time of the request", fields)
    else:
        yield "interactions", Choice(found.timestamp, "the mere order, no time", None)
    if mean < _OF_ONE_USER:
        reason = f"{mean:.1f} interactions for each user: the history says as much"
        yield "interactions", Choice(found.user, reason, None)
    else:
        number = seen.report.counts["users"]
        many = number > _USERS
        fields = {"encoding": "hash", "buckets": 500_000, "functions": 2} if many else {"encoding": "vocabulary"}
        reason = f"the user's id, {number:,} users with {mean:.0f} interactions each"
        yield "interactions", Choice(found.user, reason, {"column": found.user, **fields})
    for column, profile in looked.get("users", {}).items():
        if column != found.user_id:
            yield "users", encodings.choose(profile)
    for column, profile in looked["interactions"].items():
        if column not in found.of_interactions:
            yield "interactions", encodings.choose_context(profile)


def _show_title(result: Proposal, found: Roles) -> None:
    if found.title is None:
        return
    changed = copy.deepcopy(result.tree)
    changed["tables"]["items"]["title"] = found.title
    changed.setdefault("serving", {})["return_columns"] = [found.title]
    if _refusal(changed) is None:
        result.tree = changed
        result.reasons["serving.return_columns"] = "the title, beside each answer"
    else:
        found.title = None


def _split(result: Proposal, seen: Survey) -> None:
    """Temporal, as production sees it, wherever it leaves enough users to judge by."""
    sampled, times = seen.sampled, len(seen.times.steps)
    temporal = round(sampled.judged["eval"] / sampled.share)
    last_out = round(int((sampled.lengths >= 3).sum()) / sampled.share)
    if result.roles.has_times and times >= 3 and (temporal >= _JUDGED or temporal >= last_out / 2):
        strategy, reason = "temporal", f"there are times, and the latest tenth has {temporal:,} users to judge by"
    elif last_out:
        why = "there is an order and no times"
        if result.roles.has_times:
            why = (
                f"a temporal split leaves {temporal:,} users to judge by"
                if times >= 3
                else "there are hardly any times"
            )
        strategy, reason = "leave_last_out", f"{why}, this one {last_out:,}"
    else:
        strategy, reason = "random", "no user has three interactions, and there are no times to split by"
        result.unsure.append("there is too little of anything to split it in a way that means something")
    result.tree["split"] = {"strategy": strategy}
    result.reasons["split"] = reason
    if strategy == "leave_last_out" and result.roles.has_times:
        result.unsure.append(
            f"split: temporal is what production sees, and it leaves {temporal:,} users; take it when there are more"
        )


def _serve(result: Proposal, looked: dict[str, dict[str, Profile]], seen: Survey) -> None:
    """Whether items come again, what answers can be filtered by, and what the figures are broken down by."""
    repeated = seen.sampled.repeated
    again = repeated > USUAL_REPEATS
    serving = result.tree.setdefault("serving", {})
    serving["exclude_history"] = not again
    share = (
        f"{repeated:.1%} of the interactions repeat an item of the same user"
        if repeated
        else "nobody has an item twice"
    )
    result.reasons["serving.exclude_history"] = (
        f"{share}: recommending it again is right; recall_with_seen@k is the metric that counts it"
        if again else f"{share}: what somebody has had is not recommended again"
    )  # fmt: skip
    if USUAL_REPEATS / 2 < repeated < 2 * USUAL_REPEATS:
        result.unsure.append(f"serving.exclude_history: {share}, which is neither never nor usual")
    for choice in result.choices["candidate"][1:]:
        if choice.fields and choice.fields["encoding"] == "vocabulary" and choice.values <= _FILTERED:
            _extend(result, "serving", "filter_columns", choice.column)
    for choice in result.choices["query"]:
        profile = looked.get("users", {}).get(choice.column)
        if profile and profile.different <= _SLICED and choice.fields and choice.fields["encoding"] == "vocabulary":
            _extend(result, "evaluation", "slices", {"column": choice.column})
    quarters = sorted(
        {int(q) for q in np.percentile(seen.sampled.lengths, [25, 50, 75])} if len(seen.sampled.lengths) else ()
    )
    if len(quarters) == 3 and quarters[0] > 0:
        _extend(result, "evaluation", "slices", {"column": "activity", "boundaries": quarters})


def _extend(result: Proposal, section: str, key: str, value: Any) -> None:
    """Adds to a list of a section, unless the configuration does not allow it."""
    changed = copy.deepcopy(result.tree)
    changed.setdefault(section, {}).setdefault(key, []).append(value)
    if _refusal(changed) is None:
        result.tree = changed


def name_of(interactions: str) -> str:
    """A name for a configuration: that of the tables' folder."""
    folder = os.path.basename(os.path.dirname(os.path.abspath(interactions)))
    return re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-")[:60] or "my-data"
