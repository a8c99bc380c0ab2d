"""What the program can be asked to do: train, gallery, ...; one file per task."""
