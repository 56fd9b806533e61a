"""Write the bundle: everything the service needs, with a model card."""
