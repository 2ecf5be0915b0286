"""Pictures of compared rows. Each function makes a Picture, drawn when it is saved, for light paper or a dark page."""
