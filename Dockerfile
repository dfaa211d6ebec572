# One image for every process of Ergon; docker-compose.yml says which one a container runs.
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 ergon && install -d -o ergon /var/lib/ergon
WORKDIR /opt/ergon
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protocol protocol
COPY scheduler scheduler
COPY service service
COPY workers workers
COPY training training
COPY archives archives
COPY ergon ergon
COPY migrations migrations
RUN pip install --no-cache-dir --constraint constraints.txt '.[agent,train,service]'

# What the service keeps besides the database: a volume belongs here.
ENV ERGON_DATA_DIR=/var/lib/ergon
USER ergon
WORKDIR /var/lib/ergon
ENTRYPOINT ["python", "-P", "-m"]
CMD ["service", "api"]
