"""FastAPI as its users serve a small model: no batching, one request after another in each of uvicorn's workers."""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from task import Task

task = Task(Path.cwd())
app = FastAPI()


# In the event loop and not in FastAPI's pool of threads: the model keeps a core busy either way, and a hop to another
# thread costs more than a small model.
@app.post("/predict")
async def predict(request: Request) -> Response:
    return Response(task.predict([await request.body()])[0], media_type="application/octet-stream")
