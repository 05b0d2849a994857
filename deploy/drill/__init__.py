"""Bad versions on an endpoint of their own under load: does each get the verdict that it should?"""
