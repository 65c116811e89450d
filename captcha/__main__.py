"""`python -m captcha` does what `captcha` does."""

from captcha.cli import main

if __name__ == "__main__":
    main()
