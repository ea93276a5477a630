class AbstractWorkerPool:
    pass
