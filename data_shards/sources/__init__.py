"""Where polymers come from. A source yields rows; it decides nothing about chemistry."""
