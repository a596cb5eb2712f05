"""What a run needs before a machine is rented: memory, operations, bytes over links, seconds.

Compiles the true program for devices that are not here and reads what the compiler says.
"""
