"""Templates that give keys and values, LoRAs or pictures: opened, given inputs, applied to CONDITIONING, saved."""
