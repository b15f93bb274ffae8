"""The web app `dreambooth app`: rooms that run the commands of the command line.

It keeps no state in the browser: pages show the workspace's files and the servers' answers, so a
page that is opened again shows the present state.
"""
