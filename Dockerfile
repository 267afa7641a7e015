# The persistence service: its own code and SQL, and only what it needs to run.
FROM python:3.13-slim

RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin service

WORKDIR /service
COPY persistence/requirements.txt ./
# what the base image has of its own stays out of the way
RUN pip install --ignore-installed --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY sql/schema sql/schema
COPY sql/queries sql/queries
COPY persistence persistence

USER service
ENV HOST=0.0.0.0 PORT=8000 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/ready', timeout=3)"]
CMD ["python", "-m", "persistence"]
