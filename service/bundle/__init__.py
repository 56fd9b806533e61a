"""THE CONTRACT between training and serving: manifest, prompt, hashes, reader and writer."""
