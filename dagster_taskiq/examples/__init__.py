"""Examples that run as they are; ``dagster-taskiq dev`` and ``dagster-taskiq demo`` use :mod:`.weather`."""
