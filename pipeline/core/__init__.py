"""What every room stands on: errors, params, project root, paths, files, signals, cores, the prepared data set."""
