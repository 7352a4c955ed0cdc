"""Operations with a slow, obvious twin beside each fast form; imports torch and nothing of ours."""
