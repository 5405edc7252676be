"""The pages of the Django application that the tests wrap."""

from django.http import HttpRequest, JsonResponse
from django.urls import URLPattern, re_path


def page(request: HttpRequest) -> JsonResponse:
    """Whatever comes, as the host has heard it."""
    return JsonResponse({"host": request.path, "method": request.method, "body": request.body.decode()}, status=299)


urlpatterns: list[URLPattern] = [re_path(".*", page)]
