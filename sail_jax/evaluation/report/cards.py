"""Makes the cards of items that the report shows: a thumbnail and a short text."""

from sail_jax.data.prompts import shown_fields
from sail_jax.data.thumbnail import short_caption, thumbnail
from sail_jax.evaluation.report.gallery import Card
from sail_jax.items import TEXT_FIELDS, Item


def caption_of(item: Item) -> str:
    """Returns the text of an item on one line, cut to the length of a caption."""
    return short_caption(shown_fields(item, TEXT_FIELDS).replace("\n", " · "))


def card_of(item: Item, *, relevant: bool = False, score: float | None = None, modalities: str = "VTA") -> Card:
    """Returns an item as a card.

    Args:
        item: the item.
        relevant: of a result, whether it is relevant to the query.
        score: of a result, its cosine to the query.
        modalities: those that the card may show: of a query, those that the model gets.
    """
    return Card(
        item_id=item.item_id,
        caption=caption_of(item) if "T" in modalities else "",
        thumbnail=thumbnail(item.frames[0] if item.frames and "V" in modalities else None),
        has_audio="A" in item.modalities and "A" in modalities,
        relevant=relevant,
        score=score,
    )
