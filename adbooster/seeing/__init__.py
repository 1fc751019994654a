"""A vision model looks at what would be published, through any OpenAI-compatible endpoint; what it saw is kept.

Enters: pictures and what they should show. Leaves: answers by picture and question (tables/sightings).
"""

__all__: list[str] = []
