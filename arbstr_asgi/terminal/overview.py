"""The figures of a time as text, with how they went over that time."""

from datetime import datetime, timedelta

from arbstr_asgi.stats.params import MOST_GROUPS
from arbstr_asgi.terminal.screen import Json, groups_of, stats_text
from arbstr_asgi.terminal.series import TimeBuckets
from arbstr_asgi.terminal.source import STATS, Pairs, Source

_LONGEST = timedelta(days=10_000)  # for which days are counted


async def overview(source: Source, pairs: Pairs) -> str:
    """What is to be shown for the parameters of GET /v1/stats. Raises what the source does."""
    answer = await source.get(STATS, pairs)
    names = [*answer.get("group_by", ())]
    since, until = (datetime.fromisoformat(answer[name]) for name in ("since", "until"))
    if answer.get("empty") or until - since > _LONGEST:
        return stats_text(answer)
    steps = TimeBuckets.create(since, until, answer.get("tz") or dict(pairs).get("tz", "UTC"))
    over_time = await _over_time(source, pairs, answer, names, steps)
    return stats_text(answer) if over_time is None else stats_text(answer, steps, over_time)


async def _over_time(
    source: Source, pairs: Pairs, answer: Json, names: list[str], steps: TimeBuckets
) -> list[Json] | None:
    """The same groups for each step; None where that can't be asked, or is too much."""
    kept = [name for name in names if name != steps.unit]
    if len(kept) > 1 or {"hour", "day"} & {*kept}:
        return None
    times = [("since", answer["since"]), ("until", answer["until"]), ("limit", str(MOST_GROUPS))]
    replaced = {"group_by", "range", *dict(times)}
    asked = [pair for pair in pairs if pair[0] not in replaced]
    found = await source.get(STATS, [*asked, *times, ("group_by", ",".join([*kept, steps.unit]))])
    return None if found["truncated"] else groups_of(found)
