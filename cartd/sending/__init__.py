"""Sending of a cart's bytes from the volume to the client, at the client's pace.

``sender`` has the states of a download that is being sent.
"""
