"""The objectives. Adding one is a folder and a line in OBJECTIVES."""
