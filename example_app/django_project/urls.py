"""Two ordinary views: one says who is logged in, the other logs in."""

import hmac

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

PASSWORDS = {"alice": "wonderland", "bob": "builder"}  # a real project uses django.contrib.auth


def home(request: HttpRequest) -> JsonResponse:
    """Who is logged in."""
    return JsonResponse({"user": request.session.get("user")})


@require_POST
def login(request: HttpRequest) -> HttpResponse:
    """Note the user in the session."""
    user, password = request.POST.get("user", ""), request.POST.get("password", "")
    if not hmac.compare_digest(PASSWORDS.get(user, "").encode(), password.encode()) or not password:
        return HttpResponse("Wrong name or password.\n", status=403)
    request.session["user"] = user
    return HttpResponse(f"Hello, {user}.\n")


urlpatterns = [path("", home), path("login", login)]
