"""What the commands stand on: settings, files, and a folder for each subject."""
