"""The HTTP side: request and response models, routes, errors, middleware, and the page."""
