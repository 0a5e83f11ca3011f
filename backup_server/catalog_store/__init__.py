"""What is known of the files in backups: a cache, made by parsing their images, in a database of its own.

``store`` is what others call; ``intervals`` has the law of which row is valid in which backup, ``search``
finds names, ``rows`` packs and unpacks, ``schema`` opens the file. Format: docs/formats/catalog-db-v1.md
"""
