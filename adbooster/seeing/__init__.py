"""A vision model looks at what would be published, through any OpenAI-compatible endpoint; what it saw is kept.

Enters: pictures and what they should show. Leaves: answers by picture and question (tables/sightings), which are asked for
once. What could not be looked at is counted by reason; nothing here decides what is published.
"""

__all__ = ["checks", "config", "questions", "review"]
