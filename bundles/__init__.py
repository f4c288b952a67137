"""Bundle configurations; no Python lives here, packaging needs the file."""
