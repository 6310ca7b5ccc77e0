"""From the rows of layers to the rows of blocks, and the check that layers agree about the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vogn.capture.partition import Block, Member
from vogn.capture.places import Places
from vogn.errors import MissingCurvatureError, UnsupportedObservationError
from vogn.linalg.rows import AnyRows, GradientRow, IndexedRows, JoinedRows, Rows


def check_examples(counts: Mapping[Member, int], examples: int | None) -> None:
    """The first dimension of every layer's input is the batch.

    Args:
        counts: number of rows by member, of one backward pass.
        examples: size of the batch that a likelihood has announced, if any; flattened positions make it a multiple of
            the number of rows.

    Raises:
        UnsupportedObservationError: naming a layer that sees another number of examples.
    """
    if not counts:
        return
    usual = max(set(counts.values()), key=list(counts.values()).count)
    odd = next((member for member, count in counts.items() if count != usual), None)
    if odd is None and examples is not None and examples % usual:
        odd = next(iter(counts))
    if odd is not None:
        raise UnsupportedObservationError(
            f"layer {odd.layout.names[0]!r} saw {counts[odd]} rows where the batch has {examples or usual}: "
            "dimension 0 of every layer's input must be the batch (no time-first inputs, no positions folded into the "
            "batch, no inputs shared by all examples). Reshape, freeze this layer, or use a method without per-example "
            "statistics (IVON, VAdam)"
        )


def without_padding(rows: Rows | IndexedRows, mask: Tensor | None) -> Rows | IndexedRows:
    """Examples and positions without a loss term that no gradient reaches are padding: no inputs of the layer.

    Args:
        rows: of a layer; left alone unless its examples, and its positions, are those of the loss terms.
        mask: ``(N,)`` or ``(N, *positions)``, the loss terms that count; ``None`` if all do.
    """
    if mask is None or rows.g.shape[-3] != len(mask):
        return rows
    terms = mask.unsqueeze(1) if mask.ndim == 1 else mask.flatten(1)
    reached = (rows.g != 0).any(-1).flatten(0, -3).any(0)
    if mask.ndim == 1:
        reached = reached.any(1, keepdim=True)
    elif terms.shape != reached.shape:
        return rows
    kept = (terms | reached).expand(rows.g.shape[-3:-1])
    return rows.changed(mask=kept if rows.mask is None else rows.mask & kept)


def with_places(rows: AnyRows, places: Places) -> AnyRows:
    """Rows that know where their examples stand in the data set."""
    if isinstance(rows, GradientRow):
        return rows
    if isinstance(rows, JoinedRows):
        first, *rest = rows.members
        assert not isinstance(first, GradientRow)
        return JoinedRows((first.changed(places=places.take(rows.count, first.g.device)), *rest))
    return rows.changed(places=places.take(rows.count, rows.g.device))


def gather(block: Block, rows_of: Mapping[Member, Sequence[Rows | IndexedRows]]) -> list[AnyRows]:
    """Rows of a block from the rows of its members; members that took no part in a joined block are zero."""
    if not block.joined:
        return list(rows_of.get(block.members[0], ()))
    present = {member: rows[0] for member, rows in rows_of.items() if rows and member in block.members}
    if not present:
        return []
    like = next(iter(present.values()))
    for member, rows in rows_of.items():
        if len(rows) > 1 and member in block.members:
            # calls on different examples: JoinedRows would have to guess which rows belong together
            raise MissingCurvatureError(
                f"layer {member.layout.names[0]!r} saw batches of different sizes in one backward pass; a block that "
                "spans the model needs the same examples in every layer: use partition='layer'"
            )
    members = [present.get(member) or _zero_rows(member, like) for member in block.members]
    return [JoinedRows(tuple(members))]


def _zero_rows(member: Member, like: Rows | IndexedRows) -> Rows:
    *lead, d_out, d_in = member.layout.block_shape
    zero = like.g.new_zeros(())
    return Rows(zero.expand(*lead, like.count, 1, d_in), zero.expand(*lead, like.columns, like.count, 1, d_out))
