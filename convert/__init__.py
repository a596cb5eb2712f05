"""PyTorch checkpoints to jcos: tables of names, checked both ways."""
