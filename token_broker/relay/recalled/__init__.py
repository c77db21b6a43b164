"""What a talk is told of the memory, as items of its conversation."""
