"""YAML in, running job out. No science in here."""
