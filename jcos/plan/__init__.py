"""What a run needs before a machine is rented: memory, operations, bytes over links, seconds."""
