"""Scripts for those who change this repository; not part of the installed package."""
