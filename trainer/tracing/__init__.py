"""A step of the trainer at real size without a GPU: what it computes, moves and keeps, counted on tensors without values."""
