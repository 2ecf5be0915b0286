"""A RUN as a thing: made ready from its configuration; its folder, its checkpoints, and what continues them."""
