"""HTTP: the routes of the REST interface, and the server around them with its limits and logs."""
