"""The embedded world: a small catalog, its users, and small models in the formats of the big ones."""
