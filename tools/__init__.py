"""Programs that set up, run and convert. Nothing in the pack itself imports this folder."""
