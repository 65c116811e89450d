"""`python -m captcha` does what `captcha` does."""

from captcha.cli.app import main

if __name__ == "__main__":
    main()
