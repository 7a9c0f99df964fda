"""The lowest layer: rules for settings, building dataclasses from them, and user objects by name."""
