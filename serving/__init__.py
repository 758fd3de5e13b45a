"""What an operator of TF Serving needs beside a pushed model: client, development server, configuration files."""
