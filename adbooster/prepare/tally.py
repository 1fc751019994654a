"""What a night has done, or would do, added up over its parts."""

from collections import Counter

from adbooster.prepare.config import PrepareReport
from adbooster.prepare.plan import PartPlan, Plan


class Tally:
    """Counts of pictures by the names of `PrepareReport`, and rejected pictures by their word."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()

    def add(self, part: PartPlan, new: int, changed: int) -> None:
        """A part's pictures; those that came from another part are counted new there and are not."""
        moved = len(part.gone.moved)
        self.counts.update(new=new - moved, changed=changed + moved, retired=part.gone.retired.num_rows)

    def report(self, plan: Plan, version: int | None, pools: list[dict]) -> PrepareReport:
        """The report of a plan of which all parts were added."""
        counts, feed = self.counts, plan.feed
        work = counts["new"] + counts["changed"]
        return PrepareReport(
            run_id=plan.config.run_id,
            dry_run=plan.config.dry_run,
            feed_format=feed.format,
            rows=feed.rows,
            pictures=feed.pictures,
            new=counts["new"],
            changed=counts["changed"],
            new_or_changed=work,
            unchanged=feed.pictures - work,
            updated=counts["updated"],
            kept_unreachable=counts["kept_unreachable"],
            taken_over=counts["taken_over"],
            retired=counts["retired"],
            rejects=dict(self.rejects.most_common()),
            bad_weights=feed.bad_weights,
            notes=feed.notes,
            pools=pools,
            samples_version=version,
            seconds=plan.seconds(),
        )
