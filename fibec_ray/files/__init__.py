"""Files and folders: run directories, object storage, and JSON files that detect changes to themselves."""
