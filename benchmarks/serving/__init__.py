"""How fast and how steadily the development server answers."""
