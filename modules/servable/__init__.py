"""The servable: one SavedModel that is evaluated, validated, pushed and served, and what it says of itself."""
