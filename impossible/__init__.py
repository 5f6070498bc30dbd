"""The library that the commands use: settings, files, and a folder for each subject."""
