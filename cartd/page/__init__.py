"""The pages that browsers get: elements of ``twisted.web.template``, styles, script and images."""
